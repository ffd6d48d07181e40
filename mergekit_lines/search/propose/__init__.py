"""Points that Optuna proposes: any number of keys, measured as the points of a sweep are."""
