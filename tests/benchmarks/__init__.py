"""Programs that measure: that they measure what they say."""
