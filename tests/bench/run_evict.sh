#!/bin/sh
# The figures of kvarn-bench evict, without its timings: on the head of the real trace, whose LRU
# figures are known, and on made-up traces of other characters.
# usage: run_evict.sh KVARN_BENCH TRACE.gz
set -eu
bench=$1
trace=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

gzip -dc "$trace" >"$dir/trace.jsonl"
"$bench" evict --quick --check --trace "$dir/trace.jsonl"
for kind in scan loop zipf agents bursts; do
    "$bench" evict --quick --check --made "$kind"
done

# What is no trace is refused, with the line and what was expected.
printf '{"timestamp": 5, "input_length": 3}\n' >"$dir/bad.jsonl"
if "$bench" evict --trace "$dir/bad.jsonl" 2>"$dir/why"; then
    echo "a trace without hash_ids was taken" >&2
    exit 1
fi
grep -q 'bad.jsonl:1: expected a list hash_ids' "$dir/why"
