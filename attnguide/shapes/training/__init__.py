"""Training of the embedded model: architecture, data, and the two Lightning modules. Needs diffusers and lightning."""
