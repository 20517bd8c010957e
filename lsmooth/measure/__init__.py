"""A gradient becomes numbers: the measured quantities, and the rows that hold them."""
