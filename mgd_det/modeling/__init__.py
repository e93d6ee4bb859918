"""The meta-architecture, its teacher, and the taps into stock networks."""
