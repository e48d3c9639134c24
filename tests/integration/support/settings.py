"""Where the binaries are and how patient to be: all that the environment decides.

KVARN_BIN_DIR    folder of kvarnd and kvarnctl; default build/bin
KVARN_PB_DIR     folder of kvarnd_pb2.py; default: made by protoc when the tests start
KVARN_TEST_SLOW  factor on every deadline, for sanitizers and slow machines; default 1
"""
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("KVARN_BIN_DIR", ROOT / "build" / "bin"))
SLOW = float(os.environ.get("KVARN_TEST_SLOW", "1"))
DATA = ROOT / "tests" / "data" / "kv"


def patience(seconds):
    """A deadline in seconds, stretched by KVARN_TEST_SLOW."""
    return seconds * SLOW
