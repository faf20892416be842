// SPDX-License-Identifier: Apache-2.0
//
// Finds the generator's payload header in a frame; see src/pktgen/payload.rs.

#pragma once

#include "common.h"

// The payload of an unfragmented TCP or UDP frame without IP and TCP options, or 0. It may begin at the end of the frame.
INLINE __u8 *l4_payload(__u8 *data, __u8 *end)
{
	if (data + ETH_LEN + 20 > end)
		return 0;
	__u32 at = ETH_LEN;
	__u8 protocol;
	if (data[12] == 0x08 && data[13] == 0 && data[ETH_LEN] == 0x45) {
		protocol = data[ETH_LEN + 9];
		at += 20;
	} else if (data[12] == 0x86 && data[13] == 0xdd) {
		protocol = data[ETH_LEN + 6];
		at += 40;
	} else {
		return 0;
	}
	if (protocol != TCP && protocol != UDP)
		return 0;
	at += protocol == TCP ? 20 : 8;
	return data + (at & 0x7f);
}

INLINE int is_ours(__u8 *payload, __u8 *end)
{
	return payload + PAYLOAD_LEN <= end && payload[0] == PAYLOAD_MAGIC >> 8 && payload[1] == (PAYLOAD_MAGIC & 0xff);
}
