"""From a config to a run record: data, batches, the loop."""

from altgrad.training.data import Corpus, load_corpus
from altgrad.training.loop import Result, train

__all__ = ["Corpus", "Result", "load_corpus", "train"]
