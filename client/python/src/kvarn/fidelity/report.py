"""Tables, goals, files and plots of results."""
from __future__ import annotations

import csv
import json
import math
import pathlib
from typing import Any

import numpy as np

from kvarn.fidelity.configurations import ALL
from kvarn.fidelity.results import Result

STRETCH = 256  # positions of a point of the error by position
KL_MAX, KIVI_SHARE_MAX, REFERENCE_SHARE_MAX, TOP1_MIN, AWARE_SHARE_MAX = 0.060, 0.45, 0.5, 0.9, 0.7


def markdown(found: dict[str, Any]) -> str:
    """The table of means, for documents, of what fidelity.json holds."""
    lines = ["| cache | bits a value | perplexity | KL to fp16, nats | top-1 as fp16 | "
             "codes recalled | digits right |", "| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [f"| {row['title']} | {row['bits']:g} | {row['perplexity']:.2f} | "
              f"{row['kl_nats']:.4f} | {row['top1']:.1%} | {row['needles_exact']} of "
              f"{row['needles']} | {row['digits_right']:.1%} |"
              for row in found["configurations"].values()]
    return "\n".join(lines) + "\n"


class Report:
    """All results of a run: by configuration, then by text."""

    def __init__(self, head: dict[str, Any], results: list[Result]) -> None:
        self.head = head
        self.texts = list(dict.fromkeys(r.text for r in results))
        self.by_name: dict[str, dict[str, Result]] = {}
        for r in results:
            self.by_name.setdefault(r.configuration, {})[r.text] = r

    def mean(self, name: str, what: str) -> float:
        """Of a number of each text's result, over all texts."""
        return float(np.mean([getattr(r, what) for r in self.by_name[name].values()]))

    def _recall(self, name: str) -> tuple[int, int, float]:
        """(needles recalled, of how many, share of digits right)."""
        found = [digits for r in self.by_name[name].values() for digits in r.needles]
        right = [d for digits in found for d in digits]
        return sum(all(d) for d in found), len(found), float(np.mean(right))

    def bits(self, name: str) -> float:
        return self.mean(name, "bits")

    def table(self) -> str:
        """Means over the texts, a row for each configuration; then KL text by text."""
        lines = [f"{'':24} {'bits a':>7} {'perplexity':>10} {'KL to fp16':>10} {'top-1':>7} "
                 f"{'needles':>8} {'digits':>7}",
                 f"{'':24} {'value':>7} {'':>10} {'nats':>10} {'same':>7} {'exact':>8} "
                 f"{'right':>7}"]
        for name in self.by_name:
            exact, count, digits = self._recall(name)
            lines.append(
                f"{ALL[name].title:24} {self.bits(name):7.4f} "
                f"{math.exp(self.mean(name, 'nll')):10.3f} {self.mean(name, 'kl'):10.4f} "
                f"{self.mean(name, 'top1'):7.1%} {f'{exact}/{count}':>8} {digits:7.1%}")
        lines += ["", "KL to fp16 in nats, text by text",
                  " ".join([f"{'':24}", *(f"{t[:10]:>10}" for t in self.texts)])]
        lines += [" ".join([f"{ALL[name].title:24}",
                            *(f"{row[t].kl:10.4f}" for t in self.texts if t in row)])
                  for name, row in self.by_name.items() if name != "fp16"]
        return "\n".join(lines)

    def goals(self) -> list[tuple[bool | None, str]]:
        """(met, what it is and was); None where a configuration that it needs was not run."""
        def kl(name: str) -> float:
            return self.mean(name, "kl") if name in self.by_name else math.nan

        refined, top1 = kl("refined"), math.nan
        shares = [math.nan]
        if "refined" in self.by_name:
            top1 = self.mean("refined", "top1")
            if "reference" in self.by_name:
                shares = [r.kl / self.by_name["reference"][t].kl
                          for t, r in self.by_name["refined"].items()]
        rows = [(refined, "<=", KL_MAX, "refined: mean KL, nats"),
                (refined / kl("kivi2-g32"), "<=", KIVI_SHARE_MAX, "refined: KL / KIVI-2 g32's"),
                (max(shares), "<=", REFERENCE_SHARE_MAX,
                 "refined: KL / reference's, on the worst text"),
                (top1, ">=", TOP1_MIN, "refined: top-1 agreement"),
                (kl("aware") / refined, "<=", AWARE_SHARE_MAX, "aware: KL / refined's")]
        found: list[tuple[bool | None, str]] = []
        for value, sign, bound, what in rows:
            is_met = value <= bound if sign == "<=" else value >= bound
            is_run = not math.isnan(value)
            found.append((is_met if is_run else None,
                          f"{what}{f': {value:.4f}' if is_run else ''} (goal {sign} {bound})"))
        return found

    def write(self, folder: pathlib.Path) -> None:
        """fidelity.json, fidelity.md, and position.csv with the error by position."""
        rows = {name: {"title": ALL[name].title, "bits": self.bits(name),
                       "perplexity": math.exp(self.mean(name, "nll")),
                       "kl_nats": self.mean(name, "kl"), "top1": self.mean(name, "top1"),
                       "needles_exact": self._recall(name)[0], "needles": self._recall(name)[1],
                       "digits_right": self._recall(name)[2],
                       "texts": {t: {"kl_nats": r.kl, "top1": r.top1, "seconds": r.seconds,
                                     "perplexity": math.exp(r.nll), "needles_exact": r.recalled}
                                 for t, r in row.items()}}
                for name, row in self.by_name.items()}
        goals = [{"met": met, "what": what} for met, what in self.goals()]
        found = {**self.head, "configurations": rows, "goals": goals}
        (folder / "fidelity.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "fidelity.md").write_text(markdown(found))
        with open(folder / "position.csv", "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "configuration", "position", f"kl_nats_of_{STRETCH}"])
            for name, row in self.by_name.items():
                for text, r in row.items():
                    out.writerows([text, name, p, f"{kl:.6f}"] for p, kl in r.stretches(STRETCH))

    def plot(self, folder: pathlib.Path) -> None:
        """fidelity.svg and fidelity.png: KL by bits, KL by position. Needs matplotlib."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
        for name in (n for n in self.by_name if n != "fp16"):
            is_ours = ALL[name].quantiser is None
            line, = right.plot(*self._curve(name), "-" if is_ours else "--", label=ALL[name].title)
            kl = self.mean(name, "kl")
            left.plot(self.bits(name), kl, "o" if is_ours else "x", color=line.get_color())
            left.annotate(ALL[name].title, (self.bits(name), kl), fontsize=7,
                          xytext=(5, 3) if is_ours else (-5, -3), textcoords="offset points",
                          ha="left" if is_ours else "right", va="bottom" if is_ours else "top")
        left.set(xlabel="bits a value", ylabel="mean KL to fp16, nats", yscale="log",
                 xlim=(1.5, 5.5), title="what the bits buy")
        right.set(xlabel="position, tokens", ylabel=f"KL to fp16, nats, mean of {STRETCH}",
                  yscale="log", title="error by position")
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in (left, right):
            axes.grid(alpha=0.3)
        for suffix in ("svg", "png"):
            figure.savefig(folder / f"fidelity.{suffix}", dpi=120)
        pyplot.close(figure)

    def _curve(self, name: str) -> tuple[list[int], list[float]]:
        """Positions, and the mean over texts of the KL there."""
        points: dict[int, list[float]] = {}
        for r in self.by_name[name].values():
            for position, kl in r.stretches(STRETCH):
                points.setdefault(position, []).append(kl)
        return list(points), [float(np.mean(kl)) for kl in points.values()]
