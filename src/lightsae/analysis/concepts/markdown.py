"""The concepts of an evaluation as tables of Markdown."""

from lightsae.analysis.concepts.report import ConceptReport, families
from lightsae.markdown import markdown_row

_PAIRS = 20
_HEAD = ("concepts", "scored", "mean F1", "found by a latent", "latents each", "always firing")


def concept_lines(report: ConceptReport) -> list[str]:
    """Return how well concepts are detected, by the first part of their names, and the most absorbed pairs."""
    controls = list(report.concepts[0].controls)
    lines = [
        f"{len(report.concepts)} of {report.named} concepts ({report.source}) hold often enough to be scored: "
        f"latents and thresholds chosen on {report.tokens[0]:,} tokens of {report.documents[0]} documents, tested on "
        f"{report.tokens[1]:,} tokens of {report.documents[1]} others.",
        "",
        markdown_row([*_HEAD, *(name.replace("_", " ") for name in controls)]),
        "|---" * (len(_HEAD) + len(controls)) + "|",
    ]
    for name, some in families(report):
        means = [sum(one.controls[control] for one in some) / len(some) for control in controls]
        found = sum(one.f1 >= (1 + one.always) / 2 for one in some)
        cells = [
            f"`{name}`",
            str(len(some)),
            f"{sum(one.f1 for one in some) / len(some):.2f}",
            str(found),
            f"{sum(len(one.latents) for one in some) / len(some):.1f}",
            f"{sum(one.always for one in some) / len(some):.2f}",
        ]
        lines.append(markdown_row([*cells, *(f"{mean:.2f}" for mean in means)]))
    absorbed = sorted(report.pairs, key=lambda pair: -pair.absorbed)[:_PAIRS]
    if absorbed:
        lines += [
            "",
            markdown_row(["parent", "child", "its latent", "tokens", "parent silent", "elsewhere"]),
            "|---" * 6 + "|",
        ]
        for pair in absorbed:
            elsewhere = "" if pair.elsewhere is None else f"{pair.elsewhere:.2f}"
            cells = [f"`{pair.parent}`", f"`{pair.child}`", str(pair.latent), f"{pair.tokens:,}"]
            lines.append(markdown_row([*cells, f"{pair.absorbed:.2f}", elsewhere]))
    return lines
