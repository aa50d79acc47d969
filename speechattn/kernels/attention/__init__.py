"""Operations of attention: definition, portable torch, Triton."""
