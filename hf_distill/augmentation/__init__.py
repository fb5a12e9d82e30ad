"""What happens to images in training: pure functions of tensors, counters and recorded draws."""
