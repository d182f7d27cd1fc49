"""What both directions must know of mergekit's methods."""

WITHOUT_BASE = ("linear", "karcher", "passthrough", "slerp")  # to which the base is one of the models, or nothing
REQUIRED = ("weight", "t")  # parameters without a default in mergekit; its karcher has no weight
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
FIXED = {"multislerp": {"eps": 1e-8}}  # parameters of mergekit's that are constants here, at its default
