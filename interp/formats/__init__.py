"""One module per file format: packed tensors in, dense weights out."""
