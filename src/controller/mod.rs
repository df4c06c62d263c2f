//! The control centre: knows the nodes and what lies between them, issues tokens.
