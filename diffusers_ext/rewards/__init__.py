"""Rewards: how good a picture is for a prompt. Every one is `score(prompts, images) -> (N,)`."""
