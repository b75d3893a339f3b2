"""Six pretrained models as their packages ship them, with honest labelled data, for measuring quantization on real things."""
