"""What is trained on: pictures in one file, checked against those of evaluation, and the crops of each step."""
