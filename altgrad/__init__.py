"""AltGrad: train small transformers in simulated low-precision formats, and report what the recorded runs show."""

__version__ = "0.1.0"
