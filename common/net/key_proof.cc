#include "common/net/key_proof.h"

#include <sodium.h>
#include <zmq.h>

#include <array>
#include <optional>

namespace retort {
namespace {

using RawKey = std::array<unsigned char, 32>;
static_assert(crypto_box_PUBLICKEYBYTES == 32 && crypto_box_SECRETKEYBYTES == 32);

std::optional<RawKey> raw_key(std::string_view z85) {
  RawKey out{};
  if (z85.size() != 40 || zmq_z85_decode(out.data(), std::string(z85).c_str()) == nullptr)
    return std::nullopt;
  return out;
}

}  // namespace

Result<std::string> make_key_proof(const CurveKeys& own, std::string_view server_public_key,
                                   std::string_view context) {
  const auto secret = raw_key(own.secret_key), server = raw_key(server_public_key);
  if (!secret || !server || sodium_init() < 0) return fail(ErrorCode::kInvalid, "", "not a CURVE key");
  std::string out(crypto_box_NONCEBYTES + crypto_box_MACBYTES + context.size(), '\0');
  auto* bytes = reinterpret_cast<unsigned char*>(out.data());
  randombytes_buf(bytes, crypto_box_NONCEBYTES);
  if (crypto_box_easy(bytes + crypto_box_NONCEBYTES, reinterpret_cast<const unsigned char*>(context.data()),
                      context.size(), bytes, server->data(), secret->data()) != 0)
    return fail(ErrorCode::kInvalid, "", "not a CURVE key");
  return out;
}

bool check_key_proof(std::string_view proof, std::string_view public_key, std::string_view server_secret_key,
                     std::string_view context) {
  const auto open = raw_key(public_key), secret = raw_key(server_secret_key);
  constexpr std::size_t kOverhead = crypto_box_NONCEBYTES + crypto_box_MACBYTES;
  if (!open || !secret || proof.size() != kOverhead + context.size() || sodium_init() < 0) return false;
  const auto* bytes = reinterpret_cast<const unsigned char*>(proof.data());
  std::string said(context.size(), '\0');
  return crypto_box_open_easy(reinterpret_cast<unsigned char*>(said.data()), bytes + crypto_box_NONCEBYTES,
                              proof.size() - crypto_box_NONCEBYTES, bytes, open->data(),
                              secret->data()) == 0 &&
         said == context;
}

Result<std::string> box_for(std::string_view public_key, std::string_view bytes) {
  const auto to = raw_key(public_key);
  std::string box(crypto_box_SEALBYTES + bytes.size(), '\0');
  if (!to || sodium_init() < 0 ||
      crypto_box_seal(reinterpret_cast<unsigned char*>(box.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), to->data()) != 0)
    return fail(ErrorCode::kInvalid, "", "not a CURVE key");
  return box;
}

Result<std::string> open_box(const CurveKeys& own, std::string_view box) {
  const auto open = raw_key(own.public_key), secret = raw_key(own.secret_key);
  if (!open || !secret || sodium_init() < 0) return fail(ErrorCode::kInvalid, "", "not a CURVE key");
  std::string bytes(box.size() < crypto_box_SEALBYTES ? 0 : box.size() - crypto_box_SEALBYTES, '\0');
  if (box.size() < crypto_box_SEALBYTES ||
      crypto_box_seal_open(reinterpret_cast<unsigned char*>(bytes.data()),
                           reinterpret_cast<const unsigned char*>(box.data()), box.size(), open->data(),
                           secret->data()) != 0)
    return fail(ErrorCode::kDenied, "", "the box is not for this key, or damaged");
  return bytes;
}

}  // namespace retort
