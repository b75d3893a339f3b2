"""Six pretrained models as their packages ship them, with labelled data, for measuring quantization on real models."""
