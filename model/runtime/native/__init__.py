"""The fused recurrent step in C++: built where a compiler is at hand, absent otherwise."""
