"""Training of chosen blocks. Knows `Backbone` and `Classifier`, never a concrete network."""
