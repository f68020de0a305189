#pragma once

#include <cstddef>
#include <cstdint>

/// What the processor can do at most, to compare with what the kernels reach ([Williams 2009], roofline).
/// Both loops run on the calling thread, without touching memory but what they are given. Thread: any.
namespace retort::kernels {

/// Reads `bytes` (a multiple of 1024) once, as fast as loads go. The result only keeps the loads alive.
std::uint64_t read_once(const std::byte* data, std::size_t bytes);

/// `rounds` rounds of multiply-adds in registers: F32, or whole numbers of 8 bits (through 16 where the
/// instruction set has no 8-bit dot product). Returns the operations done (a multiply and an add are two).
double multiply_in_registers(bool eight_bits, std::size_t rounds);

}  // namespace retort::kernels
