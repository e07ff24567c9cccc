"""What goes in and comes out: files as passages, memories, lines of training sets, language models of others."""
