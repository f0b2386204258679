"""`bros top`: what the engine does, drawn live.

inspect + metrics ──► history (rates, quantiles) ──► view (panels) ──► terminal, or recording (animated SVG)
                                                      └─ kv_map
"""
