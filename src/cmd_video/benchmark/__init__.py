"""What a video model costs: operations, parameters, memory, seconds; CMD and its peers by the same count."""
