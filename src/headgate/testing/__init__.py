"""For tests, Headgate's own and its users': a loop whose time jumps, a simulated provider, exercises for every port."""
