"""emotune: a DVC pipeline that teaches a language model to reply in the emotion it is told to have."""
