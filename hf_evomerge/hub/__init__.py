"""The Hub: cards, pushing and fetching of models, their Spaces, and a Hub on loopback for trying things offline."""
