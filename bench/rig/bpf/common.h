// SPDX-License-Identifier: Apache-2.0
//
// What the programs know of frames.

#pragma once

#include "bpf.h"

#define BE16(x) __builtin_bswap16(x)
#define BE32(x) __builtin_bswap32(x)
#define BE64(x) __builtin_bswap64(x)

#define ETH_LEN 14
#define TCP 6
#define UDP 17
// The payload header; see src/pktgen/payload.rs.
#define PAYLOAD_LEN 18
#define PAYLOAD_MAGIC 0x6e6d
