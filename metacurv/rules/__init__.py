"""Learning-rate rules: a curvature reading in, a scale out. Arithmetic on scalars; they know no model."""
