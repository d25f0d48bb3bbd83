"""The page on which people judge pairs by hand: what is shown, how votes are kept, what they come to."""
