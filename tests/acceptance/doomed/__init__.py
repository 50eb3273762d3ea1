"""The app of the shop, in workers one of whose threads meets a bug of Jitney itself when told to."""
