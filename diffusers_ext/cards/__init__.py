"""Model cards, written from what a run folder holds: nothing is typed in by hand.

One module for each kind of card, `parts` for what they share, `markdown` for words that anybody may have written, and
`check` for whether a card is fit to publish.
"""
