"""Differential privacy (`privacy:`), and transforms of updates for robustness."""

DEFAULTS = {"mechanism": "gaussian", "clipping": "fixed"}  # kind -> part of a configuration that names none
