"""Tables 1-6 of the convolutional similarity paper and their controls, beside the printed numbers."""
