"""Workers without a server: who talks to whom (`topologies`) and when (`clocks`). Plain numpy, no tensors."""
