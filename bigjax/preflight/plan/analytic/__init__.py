"""An analytic model of a step: `estimate` is the whole of it, `share` what one device holds, the rest its parts."""
