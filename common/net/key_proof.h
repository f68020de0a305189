#pragma once

#include <string>
#include <string_view>

#include "common/core/result.h"
#include "common/net/link.h"

namespace retort {

/// Shows a coordinator that the sender has the secret half of a CURVE key: an authenticated box from that key
/// to the coordinator's (X25519 and XSalsa20-Poly1305, as CURVE's own), over `context`, which ties it to one
/// device and occasion. Thread: any.
Result<std::string> make_key_proof(const CurveKeys& own, std::string_view server_public_key,
                                   std::string_view context);
/// Only the holder of the server's secret key can check it.
bool check_key_proof(std::string_view proof, std::string_view public_key, std::string_view server_secret_key,
                     std::string_view context);

/// `bytes` in a box that only the holder of a CURVE key can open (X25519 and XSalsa20-Poly1305, by a key made
/// for this box alone). kInvalid: not a CURVE key.
Result<std::string> box_for(std::string_view public_key, std::string_view bytes);
/// kDenied: not a box for this key, or damaged.
Result<std::string> open_box(const CurveKeys& own, std::string_view box);

}  // namespace retort
