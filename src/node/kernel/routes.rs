//! What netlink's messages say of routes.

use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};

use super::family::Family;
use crate::dataplane::{
    forwarding::{Interface, Route},
    route_table::NOWHERE,
};

/// What `message` says, one [`Route`] for each next hop; none where it is of no use to us: not of the main table, for one
/// type of service, or dead. A route that forbids its destinations (blackhole, unreachable, prohibit) and one that leaves by
/// a way that is not ours leads [`NOWHERE`]: without it a shorter prefix would take its packets.
pub(super) fn parse_route<A: Family>(message: &RouteMessage, interfaces: &[Interface]) -> Option<Vec<Route<A>>> {
    let header = &message.header;
    let is_forbidding = matches!(header.kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit);
    if header.address_family != A::FAMILY
        || !(is_forbidding || header.kind == RouteType::Unicast)
        || header.tos != 0
        || header.flags.contains(RouteFlags::Dead)
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let mut table = u32::from(header.table);
    let (mut destination, mut metric, mut next_hops) = (A::UNSPECIFIED, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(address) => destination = A::of_route(address)?,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::MultiPath(hops) => next_hops = Some(hops),
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let mut ways: Vec<_> = match next_hops {
        _ if is_forbidding => Vec::new(),
        None => parse_next_hop(&message.attributes, None, interfaces).into_iter().collect(),
        Some(hops) => hops
            .iter()
            .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead))
            .filter_map(|hop| parse_next_hop(&hop.attributes, Some(hop.interface_index), interfaces))
            .collect(),
    };
    if ways.is_empty() {
        ways.push((NOWHERE, None));
    }
    let prefix = destination.prefix(header.destination_prefix_length)?;
    Some(ways.into_iter().map(|(interface, gateway)| Route { prefix, gateway, interface, metric }).collect())
}

/// Our number of the interface, and the gateway if there is one.
fn parse_next_hop<A: Family>(
    attributes: &[RouteAttribute],
    index: Option<u32>,
    interfaces: &[Interface],
) -> Option<(u8, Option<A>)> {
    let (mut index, mut gateway) = (index, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(value) => index = Some(*value),
            // A gateway of the other family (RFC 8950) or a tunnel is nothing we could send to.
            RouteAttribute::Gateway(address) => gateway = Some(A::of_route(address)?),
            RouteAttribute::Via(via) => gateway = Some(A::of_via(via)?),
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    let number = interfaces.iter().position(|interface| Some(interface.index) == index)?;
    Some((u8::try_from(number).ok()?, gateway))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use netlink_packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteNextHop, RouteVia},
    };

    use super::*;
    use crate::dataplane::forwarding::{Prefix, Prefix6};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn interfaces() -> Vec<Interface> {
        [7, 9].map(|index| Interface { index, mac: [2, 0, 0, 0, 1, index as u8], mtu: 1500, is_up: true }).to_vec()
    }

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes = attributes;
        message
    }

    fn to_gateway(interface: u32) -> Vec<RouteAttribute> {
        vec![RouteAttribute::Oif(interface), RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY))]
    }

    fn hop(interface: u32, gateway: Ipv4Addr) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = interface;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        hop
    }

    #[test]
    fn a_gateway_route_keeps_prefix_metric_and_our_interface_number() {
        let mut message = route(to_gateway(9));
        message.header.destination_prefix_length = 24;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 0))));
        message.attributes.push(RouteAttribute::Priority(42));
        assert_eq!(
            parse_route::<Ipv4Addr>(&message, &interfaces()).unwrap(),
            [Route { prefix: "192.0.2.0/24".parse().unwrap(), gateway: Some(GATEWAY), interface: 1, metric: 42 }]
        );
    }

    #[test]
    fn a_default_route_has_no_destination_attribute() {
        let parsed = parse_route(&route(to_gateway(7)), &interfaces()).unwrap();
        assert_eq!(parsed[0].prefix, Prefix::new(Ipv4Addr::UNSPECIFIED, 0));
    }

    #[test]
    fn of_several_next_hops_those_that_live_and_are_ours_are_taken() {
        let mut dead = hop(7, Ipv4Addr::new(10, 0, 0, 1));
        dead.flags = RouteNextHopFlags::Dead;
        let hops = vec![hop(3, Ipv4Addr::new(10, 0, 0, 3)), dead, hop(9, GATEWAY), hop(7, PEER)];
        let parsed = parse_route(&route(vec![RouteAttribute::MultiPath(hops)]), &interfaces()).unwrap();
        let ways: Vec<_> = parsed.iter().map(|route| (route.interface, route.gateway)).collect();
        assert_eq!(ways, [(1, Some(GATEWAY)), (0, Some(PEER))]);
    }

    #[test]
    fn a_route_that_forbids_or_leaves_by_a_way_that_is_not_ours_leads_nowhere() {
        let nowhere = |change: fn(&mut RouteMessage)| {
            let mut message = route(to_gateway(7));
            change(&mut message);
            let parsed = parse_route::<Ipv4Addr>(&message, &interfaces()).unwrap();
            assert_eq!(
                parsed.iter().map(|route| (route.interface, route.gateway)).collect::<Vec<_>>(),
                [(NOWHERE, None)]
            );
        };
        nowhere(|m| m.header.kind = RouteType::BlackHole);
        nowhere(|m| m.header.kind = RouteType::Unreachable);
        nowhere(|m| m.header.kind = RouteType::Prohibit);
        nowhere(|m| m.attributes[0] = RouteAttribute::Oif(8));
        nowhere(|m| m.attributes[1] = RouteAttribute::Via(RouteVia::Inet6(1.into())));
        nowhere(|m| m.attributes = vec![RouteAttribute::MultiPath(vec![hop(3, PEER), hop(4, PEER)])]);
    }

    #[test]
    fn routes_we_cannot_use_are_not_mirrored() {
        let changed = |change: fn(&mut RouteMessage)| {
            let mut message = route(to_gateway(7));
            change(&mut message);
            parse_route::<Ipv4Addr>(&message, &interfaces())
        };
        assert!(changed(|_| {}).is_some(), "the route without the change is one");
        assert_eq!(changed(|m| m.header.kind = RouteType::Local), None);
        assert_eq!(changed(|m| m.header.kind = RouteType::Throw), None);
        assert_eq!(changed(|m| m.header.table = 255), None);
        assert_eq!(changed(|m| m.attributes.push(RouteAttribute::Table(1000))), None);
        assert_eq!(changed(|m| m.header.address_family = AddressFamily::Inet6), None);
        assert_eq!(changed(|m| m.header.flags = RouteFlags::Dead), None);
        assert_eq!(changed(|m| m.header.tos = 8), None);
        assert_eq!(changed(|m| m.header.destination_prefix_length = 33), None);
    }

    #[test]
    fn routes_of_ipv6_lead_by_routers_of_one_link_and_those_of_one_link_alone_are_left_out() {
        let of = |destination: Ipv6Addr, length| {
            let router: Ipv6Addr = "fe80::1".parse().unwrap();
            let mut message = route(vec![
                RouteAttribute::Destination(RouteAddress::Inet6(destination)),
                RouteAttribute::Oif(9),
                RouteAttribute::Gateway(RouteAddress::Inet6(router)),
            ]);
            message.header.address_family = AddressFamily::Inet6;
            message.header.destination_prefix_length = length;
            (parse_route::<Ipv6Addr>(&message, &interfaces()), router)
        };
        let network: Ipv6Addr = "2001:db8::".parse().unwrap();
        let (parsed, router) = of(network, 32);
        let expected = Route { prefix: Prefix6::of(network, 32), gateway: Some(router), interface: 1, metric: 0 };
        assert_eq!(parsed, Some(vec![expected]));
        assert_eq!(of("fe80::".parse().unwrap(), 64).0, None);
        assert_eq!(of("ff00::".parse().unwrap(), 8).0, None);
    }
}
