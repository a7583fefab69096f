"""How each network is asked, once for pipeline, training, benchmark and evaluation: content, motion, whole videos."""
