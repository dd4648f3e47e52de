"""From prompts to people to a reward model: selection, annotation, rankings, their objective (Xu et al. 2023)."""
