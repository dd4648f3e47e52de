"""What `VMFMixtureClassifier` is made of: components, how they are learnt, and how they predict."""
