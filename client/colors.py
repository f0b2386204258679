"""The colour of each class of service, in every picture: terminal, plots, dashboard, drawings.

Both can be told apart by the colour-blind, and stand out from a white page and from a dark terminal (contrast over 3).
"""

RT_COLOR = "#2f86c9"
BE_COLOR = "#d9731a"
CLASS_COLORS = {"rt": RT_COLOR, "be": BE_COLOR}
ALARM_COLOR = "#ff4d6d"  # late, or taken away
FREE_COLOR = "#444a5e"
CACHED_COLOR = "#6d597a"  # slots whose owner ended; the first to go
