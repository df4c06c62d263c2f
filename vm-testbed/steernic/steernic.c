// SPDX-License-Identifier: GPL-2.0
/* Pairs of emulated Ethernet NICs, each pair joined by a cable, whose receive queues are chosen by ntuple rules.
 *
 * For tests of who writes such rules: no NIC that is emulated elsewhere has them. It is as hard to please as a real one:
 *
 * - A packet that no rule is for goes to a queue by a hash whose key nobody is told (there is no `ethtool -x`).
 * - Rules are for TCP and UDP over IPv4, by addresses and ports (`ethtool -N steer0 flow-type udp4 dst-port 53 action 1`),
 *   and are refused while `ethtool -K steer0 ntuple on` has not been said. The one of the lowest location counts.
 * - A fragment has no ports, so no rule is for it.
 * - `ethtool -L` changes the queues, `ethtool -S` counts what each received. There is no offload, and XDP is generic.
 */
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/ip.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <net/ip.h>

#define QUEUES_MAX 64
#define RULES_MAX 8192

static unsigned int pairs = 1;
module_param(pairs, uint, 0444);
MODULE_PARM_DESC(pairs, "cables, each with two ends: steer0 and steer1, steer2 and steer3, ...");

static unsigned int queues = 4;
module_param(queues, uint, 0444);
MODULE_PARM_DESC(queues, "queues of each NIC");

static unsigned int rules = 128;
module_param(rules, uint, 0444);
MODULE_PARM_DESC(rules, "size of each NIC's table of rules");

static bool whole_masks_only;
module_param(whole_masks_only, bool, 0444);
MODULE_PARM_DESC(whole_masks_only, "as in many NICs, a rule's field is compared as a whole or not at all");

struct rule {
	struct ethtool_rx_flow_spec spec;
	struct rcu_head rcu;
};

struct queue {
	atomic64_t packets, bytes;
};

struct nic {
	struct net_device *peer;
	struct queue received[QUEUES_MAX];
	atomic64_t steered; /* packets that there was a rule for */
	struct rule __rcu *rules[]; /* by location; written under RTNL */
};

static struct net_device **devices;

/* What is received */

struct flow {
	u8 flow_type;
	__be32 source, destination;
	__be16 ports[2];
};

/* The flow of a frame that starts at the Ethernet header; false where rules do not apply. */
static bool dissect(const struct sk_buff *skb, struct flow *flow)
{
	const struct ethhdr *eth;
	const struct iphdr *ip;
	struct { struct ethhdr eth; struct iphdr ip; } room;
	const __be16 *ports;

	eth = skb_header_pointer(skb, 0, sizeof(room), &room);
	if (!eth || eth->h_proto != htons(ETH_P_IP))
		return false;
	ip = (const struct iphdr *)(eth + 1);
	if (ip->version != 4 || ip->ihl < 5 || ip_is_fragment(ip))
		return false;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return false;
	flow->flow_type = ip->protocol == IPPROTO_TCP ? TCP_V4_FLOW : UDP_V4_FLOW;
	flow->source = ip->saddr;
	flow->destination = ip->daddr;
	ports = skb_header_pointer(skb, ETH_HLEN + 4 * ip->ihl, sizeof(flow->ports), flow->ports);
	if (!ports)
		return false;
	memcpy(flow->ports, ports, sizeof(flow->ports));
	return true;
}

static bool is_for(const struct ethtool_rx_flow_spec *spec, const struct flow *flow)
{
	const struct ethtool_tcpip4_spec *value = &spec->h_u.tcp_ip4_spec, *mask = &spec->m_u.tcp_ip4_spec;

	return spec->flow_type == flow->flow_type &&
	       !((flow->source ^ value->ip4src) & mask->ip4src) &&
	       !((flow->destination ^ value->ip4dst) & mask->ip4dst) &&
	       !((flow->ports[0] ^ value->psrc) & mask->psrc) &&
	       !((flow->ports[1] ^ value->pdst) & mask->pdst);
}

/* The queue of the first rule that is for a frame; -1 if none is. In an RCU read section. */
static int steer(struct net_device *dev, const struct sk_buff *skb)
{
	struct nic *nic = netdev_priv(dev);
	struct flow flow;
	unsigned int i;

	if (!(dev->features & NETIF_F_NTUPLE) || !dissect(skb, &flow))
		return -1;
	for (i = 0; i < rules; i++) {
		const struct rule *rule = rcu_dereference_bh(nic->rules[i]);

		if (rule && is_for(&rule->spec, &flow))
			return rule->spec.ring_cookie;
	}
	return -1;
}

static netdev_tx_t steernic_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct net_device *peer = ((struct nic *)netdev_priv(dev))->peer;
	struct nic *nic = netdev_priv(peer);
	unsigned int length = skb->len;
	int queue = steer(peer, skb);

	/* The NIC is done with the packet: its sender may reuse the memory it accounts for. */
	skb_orphan(skb);
	if (__dev_forward_skb(peer, skb)) {
		DEV_STATS_INC(dev, tx_dropped);
		return NETDEV_TX_OK;
	}
	/* The sender's hash is the socket's, and not the same in both directions of what a NIC could see. */
	skb_reset_network_header(skb);
	skb_clear_hash(skb);
	if (queue < 0)
		queue = reciprocal_scale(skb_get_hash(skb), peer->real_num_rx_queues);
	else
		atomic64_inc(&nic->steered);
	skb_record_rx_queue(skb, queue);
	atomic64_inc(&nic->received[queue].packets);
	atomic64_add(length, &nic->received[queue].bytes);
	if (netif_rx(skb) == NET_RX_DROP)
		DEV_STATS_INC(peer, rx_dropped);
	return NETDEV_TX_OK;
}

/* What ethtool says and changes */

static bool is_whole(u32 mask, u32 whole)
{
	return !mask || mask == whole || !whole_masks_only;
}

static int check(const struct net_device *dev, const struct ethtool_rx_flow_spec *spec)
{
	const struct ethtool_tcpip4_spec *mask = &spec->m_u.tcp_ip4_spec;

	if (spec->flow_type != TCP_V4_FLOW && spec->flow_type != UDP_V4_FLOW)
		return -EOPNOTSUPP;
	if (mask->tos || spec->ring_cookie >= dev->real_num_rx_queues)
		return -EINVAL;
	if (!is_whole(mask->ip4src, ~0U) || !is_whole(mask->ip4dst, ~0U) ||
	    !is_whole(mask->psrc, 0xffff) || !is_whole(mask->pdst, 0xffff))
		return -EINVAL;
	return 0;
}

/* Where a rule goes that names its location, or asks for the first, the last or any free one. */
static int locate(const struct nic *nic, u32 location)
{
	unsigned int i;

	if (location < rules)
		return location;
	if (!(location & RX_CLS_LOC_SPECIAL))
		return -EINVAL;
	for (i = 0; i < rules; i++) {
		unsigned int at = location == RX_CLS_LOC_LAST ? rules - 1 - i : i;

		if (!rtnl_dereference(nic->rules[at]))
			return at;
	}
	return -ENOSPC;
}

static void put(struct nic *nic, unsigned int location, struct rule *rule)
{
	struct rule *old = rcu_replace_pointer(nic->rules[location], rule, lockdep_rtnl_is_held());

	if (old)
		kfree_rcu(old, rcu);
}

static int insert(struct net_device *dev, struct ethtool_rx_flow_spec *spec)
{
	struct nic *nic = netdev_priv(dev);
	struct rule *rule;
	int location, error = check(dev, spec);

	if (error)
		return error;
	location = locate(nic, spec->location);
	if (location < 0)
		return location;
	rule = kzalloc(sizeof(*rule), GFP_KERNEL);
	if (!rule)
		return -ENOMEM;
	spec->location = location;
	rule->spec = *spec;
	put(nic, location, rule);
	return 0;
}

static int steernic_set_rxnfc(struct net_device *dev, struct ethtool_rxnfc *command)
{
	struct nic *nic = netdev_priv(dev);
	u32 location = command->fs.location;

	if (!(dev->features & NETIF_F_NTUPLE))
		return -EOPNOTSUPP;
	switch (command->cmd) {
	case ETHTOOL_SRXCLSRLINS:
		return insert(dev, &command->fs);
	case ETHTOOL_SRXCLSRLDEL:
		if (location >= rules || !rtnl_dereference(nic->rules[location]))
			return -ENOENT;
		put(nic, location, NULL);
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static int list(const struct nic *nic, struct ethtool_rxnfc *command, u32 *locations)
{
	unsigned int i, count = 0;

	for (i = 0; i < rules; i++) {
		if (!rtnl_dereference(nic->rules[i]))
			continue;
		if (locations && count == command->rule_cnt)
			return -EMSGSIZE;
		if (locations)
			locations[count] = i;
		count++;
	}
	command->rule_cnt = count;
	command->data = rules;
	return 0;
}

static int steernic_get_rxnfc(struct net_device *dev, struct ethtool_rxnfc *command, u32 *locations)
{
	struct nic *nic = netdev_priv(dev);
	struct rule *rule;

	switch (command->cmd) {
	case ETHTOOL_GRXRINGS:
		command->data = dev->real_num_rx_queues;
		return 0;
	case ETHTOOL_GRXCLSRLCNT:
		list(nic, command, NULL);
		command->data |= RX_CLS_LOC_SPECIAL;
		return 0;
	case ETHTOOL_GRXCLSRLALL:
		return list(nic, command, locations);
	case ETHTOOL_GRXCLSRULE:
		rule = command->fs.location < rules ? rtnl_dereference(nic->rules[command->fs.location]) : NULL;
		if (!rule)
			return -ENOENT;
		command->data = rules;
		command->fs = rule->spec;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static void steernic_get_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	channels->max_combined = queues;
	channels->combined_count = dev->real_num_rx_queues;
}

static int steernic_set_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	struct nic *nic = netdev_priv(dev);
	unsigned int i;

	for (i = 0; i < rules; i++) {
		const struct rule *rule = rtnl_dereference(nic->rules[i]);

		if (rule && rule->spec.ring_cookie >= channels->combined_count)
			return -EINVAL;
	}
	return netif_set_real_num_queues(dev, channels->combined_count, channels->combined_count);
}

static int steernic_get_sset_count(struct net_device *dev, int set)
{
	return set == ETH_SS_STATS ? 2 * queues + 1 : -EOPNOTSUPP;
}

static void steernic_get_strings(struct net_device *dev, u32 set, u8 *data)
{
	unsigned int i;

	for (i = 0; i < queues; i++) {
		ethtool_sprintf(&data, "rx_queue_%u_packets", i);
		ethtool_sprintf(&data, "rx_queue_%u_bytes", i);
	}
	ethtool_sprintf(&data, "rx_steered_packets");
}

static void steernic_get_ethtool_stats(struct net_device *dev, struct ethtool_stats *stats, u64 *data)
{
	struct nic *nic = netdev_priv(dev);
	unsigned int i;

	for (i = 0; i < queues; i++) {
		*data++ = atomic64_read(&nic->received[i].packets);
		*data++ = atomic64_read(&nic->received[i].bytes);
	}
	*data = atomic64_read(&nic->steered);
}

static void steernic_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	strscpy(info->driver, KBUILD_MODNAME, sizeof(info->driver));
}

static const struct ethtool_ops steernic_ethtool_ops = {
	.get_drvinfo = steernic_get_drvinfo,
	.get_link = ethtool_op_get_link,
	.get_rxnfc = steernic_get_rxnfc,
	.set_rxnfc = steernic_set_rxnfc,
	.get_channels = steernic_get_channels,
	.set_channels = steernic_set_channels,
	.get_sset_count = steernic_get_sset_count,
	.get_strings = steernic_get_strings,
	.get_ethtool_stats = steernic_get_ethtool_stats,
};

/* The device */

/* There is a link while both ends are up. */
static int steernic_open(struct net_device *dev)
{
	struct net_device *peer = ((struct nic *)netdev_priv(dev))->peer;

	if (peer->flags & IFF_UP) {
		netif_carrier_on(dev);
		netif_carrier_on(peer);
	}
	netif_tx_start_all_queues(dev);
	return 0;
}

static int steernic_stop(struct net_device *dev)
{
	netif_tx_stop_all_queues(dev);
	netif_carrier_off(dev);
	netif_carrier_off(((struct nic *)netdev_priv(dev))->peer);
	return 0;
}

static void clear_rules(struct net_device *dev)
{
	unsigned int i;

	for (i = 0; i < rules; i++)
		put(netdev_priv(dev), i, NULL);
}

static int steernic_set_features(struct net_device *dev, netdev_features_t features)
{
	if (!(features & NETIF_F_NTUPLE))
		clear_rules(dev);
	return 0;
}

static void count(struct net_device *dev, u64 *packets, u64 *bytes)
{
	struct nic *nic = netdev_priv(dev);
	unsigned int i;

	for (i = 0; i < queues; i++) {
		*packets += atomic64_read(&nic->received[i].packets);
		*bytes += atomic64_read(&nic->received[i].bytes);
	}
}

/* What one end has sent the other has received. */
static void steernic_get_stats64(struct net_device *dev, struct rtnl_link_stats64 *stats)
{
	netdev_stats_to_stats64(stats, &dev->stats);
	count(dev, &stats->rx_packets, &stats->rx_bytes);
	count(((struct nic *)netdev_priv(dev))->peer, &stats->tx_packets, &stats->tx_bytes);
}

static const struct net_device_ops steernic_netdev_ops = {
	.ndo_open = steernic_open,
	.ndo_stop = steernic_stop,
	.ndo_start_xmit = steernic_xmit,
	.ndo_set_features = steernic_set_features,
	.ndo_get_stats64 = steernic_get_stats64,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
};

static struct net_device *create(void)
{
	struct nic *nic;
	struct net_device *dev = alloc_etherdev_mqs(struct_size(nic, rules, rules), queues, queues);

	if (!dev)
		return NULL;
	strscpy(dev->name, "steer%d", sizeof(dev->name));
	eth_hw_addr_random(dev);
	dev->netdev_ops = &steernic_netdev_ops;
	dev->ethtool_ops = &steernic_ethtool_ops;
	dev->hw_features = NETIF_F_NTUPLE;
	dev->max_mtu = ETH_MAX_MTU;
	netif_carrier_off(dev);
	return dev;
}

/* All are down before any is freed: an end's last packet may be under way to the other. */
static void steernic_exit(void)
{
	unsigned int i;
	LIST_HEAD(gone);

	rtnl_lock();
	for (i = 0; i < 2 * pairs; i++)
		if (devices[i] && devices[i]->reg_state == NETREG_REGISTERED)
			unregister_netdevice_queue(devices[i], &gone);
	unregister_netdevice_many(&gone);
	for (i = 0; i < 2 * pairs; i++)
		if (devices[i])
			clear_rules(devices[i]);
	rtnl_unlock();
	for (i = 0; i < 2 * pairs; i++)
		if (devices[i])
			free_netdev(devices[i]);
	kfree(devices);
	rcu_barrier();
}

static int __init steernic_init(void)
{
	unsigned int i;
	int error = -ENOMEM;

	if (!pairs || pairs > 64 || !queues || queues > QUEUES_MAX || !rules || rules > RULES_MAX)
		return -EINVAL;
	devices = kcalloc(2 * pairs, sizeof(*devices), GFP_KERNEL);
	if (!devices)
		return -ENOMEM;
	for (i = 0; i < 2 * pairs; i++) {
		devices[i] = create();
		if (!devices[i])
			goto undo;
	}
	for (i = 0; i < 2 * pairs; i++) {
		((struct nic *)netdev_priv(devices[i]))->peer = devices[i ^ 1];
		error = register_netdev(devices[i]);
		if (error)
			goto undo;
	}
	return 0;

undo:
	steernic_exit();
	return error;
}

module_init(steernic_init);
module_exit(steernic_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Pairs of emulated NICs with ntuple rules");
