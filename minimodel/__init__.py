"""minimodel: unsupervised face animation, built from its papers and checked against exact ground truth."""
