"""From a config to a run record: data, batches, the loop, checkpoints."""

from altgrad.training.checkpoint import Checkpoints
from altgrad.training.corpus import Corpus
from altgrad.training.data import load_corpus, load_text
from altgrad.training.loop import Result, train

__all__ = ["Checkpoints", "Corpus", "Result", "load_corpus", "load_text", "train"]
