"""Zonelists as Linux builds them: mm/page_alloc.c build_zonelists, find_next_best_node (v6.1).

A plain model: distances between nodes, and the load that earlier zonelists put on each node.
"""

MAX_NUMNODES = 1024  # CONFIG_NODES_SHIFT=10
LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20


def distance(a, b):
    return LOCAL_DISTANCE if a == b else REMOTE_DISTANCE


def node_orders(nr_nodes):
    """The nodes in the order in which each node's zonelist names them, built for 0, 1, ..."""
    load = [0] * nr_nodes
    orders = []
    for local in range(nr_nodes):
        used, order, previous = set(), [], local
        while len(used) < nr_nodes:
            if local not in used:
                best = local
            else:
                values = {
                    node: (distance(local, node) + (node < local)) * MAX_NUMNODES + load[node]
                    for node in range(nr_nodes)
                    if node not in used
                }
                best = min(values, key=lambda node: (values[node], node))
            used.add(best)
            if distance(local, best) != distance(local, previous):
                load[best] += 1
            order.append(best)
            previous = best
        orders.append(order)
    return orders


def zonelist(nr_nodes, local):
    """(node, zone name) in the order in which a request of a node's CPU tries them."""
    return [
        (node, zone)
        for node in node_orders(nr_nodes)[local]
        for zone in (("Normal", "DMA32", "DMA") if node == 0 else ("Normal",))
    ]
