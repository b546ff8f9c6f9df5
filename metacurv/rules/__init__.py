"""Learning-rate rules: each turns a reading of curvature into a rate. They are arithmetic on scalars and know no model."""
