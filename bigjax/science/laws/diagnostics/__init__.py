"""Where a law fits badly: `residuals` looks at the points fitted, `held_out` at those left out, `page` shows both."""
