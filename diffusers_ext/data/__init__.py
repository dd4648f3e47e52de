"""Data: rows of a data set in any form, and their tensors. No method's own data is here."""
