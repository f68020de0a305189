#pragma once

#include <boost/asio/ssl/context.hpp>
#include <string>

#include "common/http/tls.h"

struct x509_st;

namespace retort {

struct TlsServer::Impl {
  boost::asio::ssl::context context{boost::asio::ssl::context::tls_server};
};

/// Of the DER form.
std::string certificate_fingerprint(const x509_st* certificate);

}  // namespace retort
