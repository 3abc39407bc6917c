"""What stands where runs are missing: what is missing, and the commands that record it."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.site import Block, CodeBlock, Heading, Note, Paragraph
from altgrad.site.content import Text

ONE_RUN = ".venv/bin/python experiments/run_experiment.py experiments/configs/e5m2.yaml"
ON_A_GPU = (
    "The same configs run on a GPU, for example on a rented H100 machine such as RunPod offers: clone the repository "
    "there, install a CUDA build of torch, and bring the records back."
)
BACK = "tar czf runs.tgz experiments/runs   # copy it here and unpack it in this folder"


def pending(missing: Text, studies: Sequence[str]) -> list[Block]:
    """The section that stands where runs are missing: what is missing and the commands that record it."""
    campaign = [f".venv/bin/python experiments/campaign.py {study}" for study in studies]
    return [
        Heading("Pending Experiments"),
        Paragraph(missing),
        Paragraph("These commands record the runs; the next build of the page reads them:"),
        CodeBlock("\n".join(["make install", *campaign, "make reports", "make serve"]), "bash"),
        Paragraph("One run of one config:"),
        CodeBlock(f"{ONE_RUN} --set max_steps=300 --seed 0", "bash"),
        Paragraph(ON_A_GPU),
        CodeBlock(f"make install\n{ONE_RUN} --device cuda\n{BACK}", "bash"),
    ]


def pending_note(missing: Text, studies: Sequence[str]) -> Note:
    """What stands in a section whose runs are missing, on a page that has others: what, and the commands."""
    commands = "\n".join(f"make campaign STUDY={study}" for study in studies)
    return Note("question", "Pending Experiments", (Paragraph(missing), CodeBlock(commands, "bash")))


def larger(loader: ExperimentDataLoader, study: str) -> list[Block]:
    """A note while a study of the campaign is recorded and its larger version, for a GPU, is not."""
    recorded = set(loader.runs["study"])
    if study not in recorded or f"{study}-large" in recorded:
        return []
    missing = (
        f"Whether this holds in a larger model is not known: study {study}-large, 6 layers of 384 and 5,000 steps, "
        "is written for a GPU and not recorded."
    )
    return [pending_note(missing, [f"{name}-large DEVICE=cuda" for name in ("tuning", study)])]
